"""Make the virtual environment that every `make` target runs in, or a training machine.

    python3 tools/make_environment.py .venv                 all of it, with the tools of development
    python3 tools/make_environment.py venv --dependencies   what training needs, and not the project

Runs before anything is installed, under whatever `python3` the machine has: standard library
only, and no syntax younger than Python 3.6, so that an old interpreter can say what is wrong.
One outside the supported range looks for one inside it before it gives up.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import urllib.request

OLDEST, NEWEST = (3, 11), (3, 13)
TORCH_INDEX = "https://download.pytorch.org/whl/"
TORCH_CPU_INDEX = TORCH_INDEX + "cpu"


def is_supported(version):
    return OLDEST <= tuple(version[:2]) <= NEWEST


def runs(python):
    """Whether an interpreter starts: a pyenv shim or a moved environment may lie there and not."""
    return subprocess.call([python, "-c", ""], stderr=subprocess.DEVNULL) == 0


def find_interpreter():
    """The path of a supported interpreter, or None."""
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        path = shutil.which(f"python3.{minor}")
        if path and runs(path):
            return path
    return None


def complaint(version, has_ensurepip):
    """What keeps an interpreter from making the environment, and what to do; None if nothing."""
    name = f"{version[0]}.{version[1]}"
    if not is_supported(version):
        return (
            f"Strata needs Python 3.11, 3.12 or 3.13, and this is Python {name}.\n"
            "  Debian, Ubuntu: sudo apt-get install python3.12 python3.12-venv\n"
            "  elsewhere:      install one from python.org, or with pyenv, conda or uv\n"
            "  then:           make PYTHON=python3.12 run"
        )
    if not has_ensurepip:
        return (
            f"Python {name} came without its venv module. On Debian or Ubuntu:\n"
            f"  sudo apt-get install python3-venv    (or python{name}-venv)"
        )
    return None


def pip_has_indexes():
    """Whether pip was told where packages lie; then nothing is added to that."""
    if any(name.startswith("PIP_") and ("INDEX" in name or "LINKS" in name) for name in os.environ):
        return True
    listing = [sys.executable, "-m", "pip", "config", "list"]
    settings = subprocess.run(listing, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    return b"index-url" in settings or b"find-links" in settings


def cpu_index():
    """pip's options for a Linux machine with no NVIDIA GPU, where PyPI's wheel of torch would bring
    gigabytes of CUDA along; none where PyTorch's own index does not answer, nor on the login node
    of a cluster, which says nothing of the nodes that train."""
    if not sys.platform.startswith("linux") or shutil.which("nvidia-smi") or pip_has_indexes():
        return []
    return [] if shutil.which("sbatch") else extra_index(TORCH_CPU_INDEX)


def extra_index(url):
    try:
        urllib.request.urlopen(url + "/torch/", timeout=5).close()
    except OSError:
        return []
    return ["--extra-index-url", url]


def cuda_build(driver, capability):
    """Which build of torch 2.11 to 2.14 runs on an NVIDIA GPU: "" for PyPI's, of CUDA 13; "cu126"
    for the one of CUDA 12.6 in PyTorch's own index; None where there is none.

    CUDA 13 takes drivers from 580 on and GPUs from Turing (7.5) on, CUDA 12.6 drivers from 525 on
    and GPUs before Blackwell (10.0). From PyTorch's support matrices of these releases, and
    NVIDIA's of minor version compatibility.
    """
    if driver >= 580 and capability >= (7, 5):
        return ""
    return "cu126" if driver >= 525 and capability < (10, 0) else None


def gpus():
    """(driver, compute capability) of each NVIDIA GPU, as in (580, (9, 0)); none if there is none.

    A driver that does not know what is asked is older than any that torch still supports.
    """
    if not shutil.which("nvidia-smi"):
        return []
    asked = ["nvidia-smi", "--query-gpu=driver_version,compute_cap", "--format=csv,noheader"]
    done = subprocess.run(asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    found = []
    for line in done.stdout.decode().splitlines() if done.returncode == 0 else []:
        version, _, capability = line.partition(", ")
        try:
            major, minor = capability.split(".")
            found.append((int(version.split(".")[0]), (int(major), int(minor))))
        except ValueError:  # [N/A], of what is no ordinary GPU
            continue
    return found


def torch_options(folder):
    """pip's options for the torch that this machine can use, and the constraints they go with."""
    builds = {cuda_build(*gpu) for gpu in gpus()}
    if pip_has_indexes() or builds <= {""}:
        return cpu_index(), "constraints.txt"
    if None in builds:
        print("No build of torch takes this GPU with its driver, which is older than 580: the")
        print("processor computes", flush=True)
        return extra_index(TORCH_CPU_INDEX), "constraints.txt"
    index = extra_index(TORCH_INDEX + "cu126")
    if not index:
        print(f"{TORCH_INDEX}cu126 does not answer, where the torch lies that this GPU's driver")
        print("takes, older than 580 as it is: the processor computes", flush=True)
        return [], "constraints.txt"
    # the lock's packages of CUDA are those of PyPI's build
    loosened = os.path.join(folder, "constraints.txt")
    with open("constraints.txt") as lock, open(loosened, "w") as file:
        file.writelines(line for line in lock if not line.startswith(("cuda-", "nvidia-")))
    return index, loosened


def dependencies():
    """What the project depends on, without the project itself and its tools of development."""
    import tomllib

    with open("pyproject.toml", "rb") as file:
        return tomllib.load(file)["project"]["dependencies"]


def main(folder, *options):
    problem = complaint(sys.version_info, importlib.util.find_spec("ensurepip") is not None)
    if problem:
        other = None if is_supported(sys.version_info) else find_interpreter()
        if other is None:
            sys.exit(f"make: {problem}")
        os.execv(other, [other, *sys.argv])
    python = os.path.join(folder, "bin", "python")
    if not (os.path.exists(python) and runs(python)):
        print(f"Making the environment in {folder}", flush=True)
        subprocess.check_call([sys.executable, "-m", "venv", "--clear", folder])
    print("Installing the packages of constraints.txt (a minute or two)", flush=True)
    install = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    torch, constraints = torch_options(folder)
    wanted = dependencies() if "--dependencies" in options else ["-e", ".[dev]"]
    if subprocess.call([*install, *torch, "-c", constraints, *wanted]):
        sys.exit("make: pip could not install the packages; its message stands above")


if __name__ == "__main__":
    main(*sys.argv[1:])
