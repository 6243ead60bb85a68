"""Runs in a sandbox: print (NUL-ended) whatever of the named packages can be found outside the task's own places.

Folders end in ``/``. Looked for: importable packages and modules, installed metadata, and archives.
"""

import os
import re
import sys

SKIPPED = ("/proc", "/sys", "/dev", "/workspace", "/opt/env", "/opt/kit", "/tmp", "/home")  # noqa: S108


def main(names):
    spelled = "|".join(re.sub(r"[-_.]+", "[-_.]", re.escape(name).replace("\\-", "-").replace("\\.", ".")) for name in names)
    package = re.compile(rf"(?:{spelled})", re.IGNORECASE)
    module = re.compile(rf"(?:{spelled})\.(?:py|pyc|so|[\w.-]+\.so)", re.IGNORECASE)
    release = re.compile(
        rf"(?:{spelled})-[0-9][\w.!+-]*(?:\.(?:dist|egg)-info|\.whl|\.tar\.\w+|\.tgz|\.zip)|(?:{spelled})\.egg-info",
        re.IGNORECASE,
    )
    for folder, folders, files in os.walk("/"):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in SKIPPED]
        for name in list(folders):
            path = os.path.join(folder, name)
            if release.fullmatch(name) or (package.fullmatch(name) and os.path.exists(os.path.join(path, "__init__.py"))):
                folders.remove(name)
                show(path + "/")
        for name in files:
            if release.fullmatch(name) or (module.fullmatch(name) and "python" in folder):
                show(os.path.join(folder, name))


def show(path):
    sys.stdout.buffer.write(os.fsencode(path) + b"\0")


if __name__ == "__main__":
    main(sys.argv[1:])
