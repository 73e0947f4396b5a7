"""Which calls of a Python file open, read, write, move or remove files, by the full names of what is called."""

import ast

FUNCTIONS = {
    "open", "io.open", "io.FileIO", "codecs.open", "mmap.mmap", "numpy.DataSource", "PIL.Image.open", "sqlite3.connect",
    "shelve.open", "dbm.open", "linecache.getlines", "fileinput.input", "urllib.request.urlretrieve",
    "yaml.load", "yaml.safe_load", "yaml.dump", "yaml.safe_dump", "json.load", "json.dump",
    "os.open", "os.fdopen", "os.replace", "os.rename", "os.renames", "os.remove", "os.unlink", "os.truncate", "os.link",
    "os.symlink", "os.mkfifo", "os.sendfile",
    "numpy.load", "numpy.save", "numpy.savez", "numpy.savez_compressed", "numpy.loadtxt", "numpy.savetxt",
    "numpy.genfromtxt", "numpy.fromfile", "numpy.memmap", "numpy.lib.format.open_memmap", "numpy.lib.format.read_array",
    "numpy.lib.format.write_array",
    "torch.load", "torch.save", "torch.jit.load", "torch.jit.save", "torch.export.load", "torch.export.save",
    "torch.from_file", "torch.distributed.checkpoint.save", "torch.distributed.checkpoint.load",
    "torch.distributed.checkpoint.async_save",
}  # fmt: skip
PACKAGES = (
    "pickle", "marshal", "zipfile", "tarfile", "gzip", "bz2", "lzma", "shutil", "tempfile", "safetensors", "h5py", "pandas",
)  # fmt: skip
INSIDE = {"shutil.which", "shutil.disk_usage", "zipfile.ZipInfo"}  # of these packages; touch no file's content
METHODS = {
    "open", "read_text", "write_text", "read_bytes", "write_bytes", "tofile", "savefig", "to_csv", "to_parquet", "to_pickle",
    "from_file", "unlink", "rename", "touch", "symlink_to", "hardlink_to", "link_to", "save_pretrained", "from_pretrained",
    "imread", "imsave",
}  # fmt: skip
OWN = ("files.", "kept_files.", "lowmem.", "self.", "super().")  # our ways are looked at where they stand


def calls(text: str) -> set[str]:
    """The full names of such calls; of a method, its name behind a dot."""
    tree = ast.parse(text)
    known = bindings(tree)
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            written = ast.unparse(node.func)
            first, dot, rest = written.partition(".")
            name = known.get(first, first) + dot + rest
            if name in FUNCTIONS or (name.split(".")[0] in PACKAGES and "." in name and name not in INSIDE):
                if not is_error(name):
                    found.add(name)
            elif isinstance(node.func, ast.Attribute) and node.func.attr in METHODS and not name.startswith(OWN):
                found.add(f".{node.func.attr}")
    return found


def is_error(name: str) -> bool:
    return name.split(".")[-1].endswith(("Error", "BadZipFile"))


def bindings(tree: ast.AST) -> dict[str, str]:
    """{name in the file: full name of what was imported, or assigned, under it}, wherever in the file that was done."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                known[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module:
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):  # reader = np.load
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute | ast.Name):
            first, dot, rest = ast.unparse(node.value).partition(".")
            full = known.get(first, first) + dot + rest
            if full in FUNCTIONS or full.split(".")[0] in PACKAGES:
                known |= {target.id: full for target in node.targets if isinstance(target, ast.Name)}
    return known
