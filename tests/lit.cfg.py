# Text tests: a file's first lines say how it is run and what it must print (lit + FileCheck).
import os, lit.formats
config.name = "dsmc"
config.test_format = lit.formats.ShTest(execute_external=False)
config.suffixes = [".dsm", ".ir", ".test"]
config.excludes = ["ok", "inputs", "data", "corpus"]
root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
config.test_source_root = os.path.join(root, "tests")
build = lit_config.params.get("build", os.path.join(root, "build"))
config.test_exec_root = os.path.join(build, "lit")
config.environment["PATH"] = "/usr/lib/llvm-19/bin:" + os.environ["PATH"]
for v in ("ASAN_OPTIONS", "UBSAN_OPTIONS", "HOME"):
    if v in os.environ:
        config.environment[v] = os.environ[v]
config.substitutions.append(("%dsmc", os.path.join(build, "dsmc")))
config.substitutions.append(("%examples", os.path.join(root, "examples")))
config.substitutions.append(("%root", root))
