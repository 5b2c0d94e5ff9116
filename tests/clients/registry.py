"""Fills a web server's folder with one package each for pip and npm, and a repository for git.

registry.py FOLDER URL
"""

import io
import json
import pathlib
import subprocess
import sys
import tarfile
import zipfile

folder, url = pathlib.Path(sys.argv[1]), sys.argv[2]

index = folder / "simple/demo-package"
index.mkdir(parents=True)
wheel = "demo_package-1.0-py3-none-any.whl"
(index / "index.html").write_text(f'<!DOCTYPE html><html><body><a href="{wheel}">{wheel}</a></body></html>')
with zipfile.ZipFile(index / wheel, "w") as archive:
    information = "demo_package-1.0.dist-info"
    archive.writestr("demo_package.py", "")
    archive.writestr(f"{information}/METADATA", "Metadata-Version: 2.1\nName: demo-package\nVersion: 1.0\n")
    archive.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    archive.writestr(f"{information}/RECORD", "")

packages = folder / "npm"
packages.mkdir()
manifest = {"name": "demo-package", "version": "1.0.0"}
with tarfile.open(packages / "demo-package.tgz", "w:gz") as archive:
    content = json.dumps(manifest).encode()
    entry = tarfile.TarInfo("package/package.json")
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
manifest["dist"] = {"tarball": f"{url}/npm/demo-package.tgz"}
document = {"name": "demo-package", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": manifest}}
(packages / "demo-package").write_text(json.dumps(document))

source = folder / "source"
git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "init.defaultBranch=main"]
for arguments in (
    ["init", "--quiet", source],
    ["-C", source, "commit", "--quiet", "--allow-empty", "--message", "hello"],
    ["clone", "--quiet", "--bare", source, folder / "demo.git"],
    ["-C", folder / "demo.git", "update-server-info"],
):
    subprocess.run([*git, *arguments], check=True)
