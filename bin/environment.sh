# Sourced by bin/seamark and bin/test, which set `root` (this checkout) and `me` (their name).
# prepare_environment LOCK: leaves $python, an interpreter in a virtual environment that has exactly what
# LOCK names, each file checked by its digest. Quick when nothing changed: one sha256sum, no Python.
#
# SEAMARK_VENV    where the environment is (default: .venv in the checkout)
# SEAMARK_PYTHON  the interpreter it is made with (default: the first of python3, python3.13 … that will do)

venv=${SEAMARK_VENV:-$root/.venv}
python=$venv/bin/python
stamp=$venv/seamark-environment

say() { printf '%s: %s\n' "$me" "$*" >&2; }

die() {
    say "$*"
    exit 1
}

find_python() {
    for candidate in ${SEAMARK_PYTHON:-python3 python3.13 python3.12 python3.11 python3.14}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    die "needs Python 3.11 or newer; install it (Debian, Ubuntu: apt-get install python3 python3-venv)"
}

# What the environment must be: the digest of its lock, and where the code is.
wanted() { printf '%s %s\n' "$(sha256sum <"$root/$1")" "$root"; }

# bin/test's packages include all of bin/seamark's, in the same versions.
is_prepared() {
    [ -x "$python" ] && [ -f "$stamp" ] && grep -qxF -e "$(wanted "$1")" "$stamp" && "$python" -c '' 2>/dev/null
}

prepare_environment() {
    is_prepared "$1" && return
    command -v sha256sum >/dev/null || die "needs sha256sum (coreutils)"
    mkdir -p "$(dirname "$venv")" 2>/dev/null
    (
        # two first uses at the same time: the second waits, and finds it done
        if command -v flock >/dev/null; then flock 9; fi
        is_prepared "$1" || make_environment "$1"
    ) 9>"$venv.lock" || exit 1
}

make_environment() {
    say "preparing $venv (once; takes up to a minute and needs a package index)"
    rm -f "$stamp"
    if ! "$python" -c 'import pip' 2>/dev/null; then
        base=$(find_python) || exit 1
        "$base" -c 'import ensurepip, venv' 2>/dev/null ||
            die "$base cannot make virtual environments; install python3-venv (Debian, Ubuntu)"
        rm -rf "$venv"
        "$base" -m venv "$venv" || die "cannot make $venv"
    fi
    "$python" -m pip -qq --disable-pip-version-check --no-input install --require-hashes -r "$root/$1" >&2 ||
        die "cannot install what $1 names (see above); nothing else was changed"
    printf '%s\n' "$root" >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/seamark.pth"
    {
        wanted requirements.lock
        if [ "$1" != requirements.lock ]; then wanted "$1"; fi
    } >"$stamp"
}
