# Sourced: makes .venv (and .venv-k2, .venv-superb) and installs what is missing, quietly; a second call costs nothing.

root=${root:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}

# install_environment EXTRA[,EXTRA…]: the project with these extras (those installed before are kept).
install_environment() {
  local venv="$root/.venv" marker="$root/.venv/.installed" stamp wanted
  has_extras "$1" && return 0
  begin_alone .venv
  has_extras "$1" && { end_alone; return 0; }
  [[ ! -L $venv ]] ||
    { echo "$venv is a link, and lacks $wanted: install in the folder that it leads to, or remove the link" >&2; exit 1; }
  local python=${PYTHON:-python3}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
    { echo "$python is not Python 3.10 or newer; set PYTHON to one that is" >&2; exit 1; }
  echo "== installing the project with $wanted into .venv: once, 2 to 10 minutes, about 5 GB"
  if [[ ! -x $venv/bin/python ]]; then
    need_room 6 2
    "$python" -m venv "$venv"
  fi
  # --no-compile: modules are compiled when they are first imported, which most never are; the check imports the others
  "$venv/bin/python" -m pip install --progress-bar off --disable-pip-version-check --no-compile \
    --constraint "$root/constraints.txt" --editable "$root[${wanted// /,}]" > >(show_packages) ||
    { echo "installation failed; see the lines above, mend it and call again" >&2; exit 1; }
  # what was installed counts only once it has been used: a marker beside broken libraries would stay for ever
  (cd "$root" && env -u PYTHONDONTWRITEBYTECODE "$venv/bin/python" -m distill.extras $wanted) ||
    { echo "$venv is installed, but does not work; see the lines above. Remove it to install it anew" >&2; exit 1; }
  echo "$stamp $wanted" >"$marker"
  end_alone
}

# has_extras EXTRA[,EXTRA…]: whether .venv has them, as they are pinned now. Sets the caller's stamp, and wanted, with
# those installed before.
has_extras() {
  local stamp_then="" extras_then=""
  stamp=$(cat "$root/pyproject.toml" "$root/constraints.txt" | sha256sum | cut -c1-16)
  [[ ! -f $marker ]] || read -r stamp_then extras_then <"$marker" || true
  wanted=$(sorted_words "${1//,/ } $extras_then")
  [[ -x $venv/bin/python && "$stamp_then $(sorted_words "$extras_then")" == "$stamp $wanted" ]]
}

# begin_alone NAME: wait for a call that installs the same. end_alone: let others begin; an exit does so too.
begin_alone() {
  command -v flock >/dev/null || return 0
  exec 9>"$root/$1.lock"
  flock --nonblock 9 || { echo "== waiting for another call that installs $1"; flock 9; }
}
end_alone() {
  exec 9>&-
}

# show_packages: one line per package in what pip prints, one for their installation.
show_packages() {
  local word name rest
  while read -r word name rest; do
    case $word in
      Collecting) echo "   fetching $name" ;;
      Installing) [[ $name != collected ]] || echo "   installing these packages" ;;
    esac
  done
}

# sorted_words TEXT: each word once, in an order that is always the same.
sorted_words() {
  printf '%s\n' $1 | LC_ALL=C sort -u | xargs
}

# need_room INSTALLED FETCHED: ends with a message where so many GiB find no room, here and in pip's temporary folder.
need_room() {
  local here temporary=${TMPDIR:-/tmp} needed=$1
  here=$(df -Pk "$root" | awk 'NR == 2 { print $1 }')
  [[ $(df -Pk "$temporary" | awk 'NR == 2 { print $1 }') != "$here" ]] || needed=$((needed + $2))
  require_free "$root" "$needed" && require_free "$temporary" "$2"
}

# require_free FOLDER GIB
require_free() {
  local free
  free=$(df -Pk "$1" | awk 'NR == 2 { print int($4 / 1024 / 1024) }')
  ((free >= $2)) && return 0
  echo "installing needs $2 GiB free in $1, and there are $free; make room, or set TMPDIR to a folder with more" >&2
  exit 1
}

# python_3_10: the newest Python for which PyPI has a k2, and s3prl's torchaudio: $PYTHON310, python3.10, or pyenv's.
python_3_10() {
  local candidate pyenv=${PYENV_ROOT:-$(pyenv root 2>/dev/null || echo "$HOME/.pyenv")}
  for candidate in "${PYTHON310:-}" python3.10 "$pyenv"/versions/3.10.*/bin/python; do
    [[ -n $candidate ]] || continue
    "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 10))' 2>/dev/null && { echo "$candidate"; return 0; }
    [[ $candidate != "${PYTHON310:-}" ]] || { echo "PYTHON310=$PYTHON310 is not a Python 3.10" >&2; return 1; }
  done
  echo "this needs Python 3.10, and there is none here: install one (apt-get install python3.10-venv," \
    "pyenv install 3.10, conda create -n py310 python=3.10) and, if it is not found, set PYTHON310 to it" >&2
  return 1
}

# install_beside k2|superb: .venv-NAME as constraints-NAME.txt has it. This project is not installed there (its torch is
# another): PYTHONPATH shows the way.
install_beside() {
  local name=$1 venv="$root/.venv-$1" stamp python
  stamp=$(sha256sum <"$root/constraints-$name.txt" | cut -c1-16)
  is_beside "$venv" "$stamp" && return 0
  begin_alone ".venv-$name"
  is_beside "$venv" "$stamp" && { end_alone; return 0; }
  [[ $(uname -sm) == "Linux x86_64" ]] || { echo ".venv-$name has wheels for Linux on x86_64 only" >&2; exit 1; }
  python=$(python_3_10) || exit 1
  local room=7 fetched=3
  [[ $name != k2 ]] || room=4 fetched=2
  echo "== installing .venv-$name (once; $fetched GB to fetch, $room GB on disk, some minutes)"
  rm -rf "$venv"
  need_room "$room" "$fetched"
  if ! { "$python" -m venv "$venv" && "fill_$name" "$venv"; }; then
    rm -rf "$venv"
    echo "$name could not be installed, and .venv-$name is removed again; see the lines above, mend it and call again" >&2
    exit 1
  fi
  echo "$stamp" >"$venv/.installed"
  end_alone
}

# is_beside VENV STAMP: whether it is complete, of these pins.
is_beside() {
  [[ -x $1/bin/python && -f $1/.installed && $(cat "$1/.installed") == "$2" ]]
}

# fill_k2, fill_superb VENV: fetch, install, and check by using it. Steps are chained: `set -e` is off in conditions.
# k2's wheel is fetched by its name, since pip reads none of them as meant.
fill_k2() {
  local python="$1/bin/python" wheel
  mkdir -p "$1/wheels" &&
    wheel=$("$python" "$root/local/fetch_wheel.py" "$(grep '^k2==' "$root/constraints-k2.txt")" "$1/wheels") &&
    "$python" -m pip install --quiet --disable-pip-version-check --no-compile \
      --requirement "$root/constraints-k2.txt" "$wheel" &&
    rm -r "$1/wheels" &&
    "$python" -c 'import k2, _k2  # k2 first: it loads the libraries of torch that _k2 needs
one = k2.linear_fsa([1, 2])
assert k2.intersect(one, one, treat_epsilons_specially=False).num_arcs == 3, "k2.intersect gives a wrong FSA"'
}

# --no-deps: the file has all that s3prl's recipes import, which is less than its packages ask for
fill_superb() {
  local pip=("$1/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile --no-deps)
  "${pip[@]}" "$(grep '^wheel==' "$root/constraints-superb.txt")" &&
    "${pip[@]}" --requirement "$root/constraints-superb.txt" &&
    "$1/bin/python" -c 'import s3prl.problem'
}
