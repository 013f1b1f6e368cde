# Sourced: makes .venv and installs what is missing, quietly; a second call costs nothing.

root=${root:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}

# install_environment EXTRA[,EXTRA…]: the project with these extras (those installed before are kept).
install_environment() {
  local venv="$root/.venv" marker="$root/.venv/.installed" extra wanted=""
  local stamp
  stamp=$(cat "$root/pyproject.toml" "$root/constraints.txt" | sha256sum | cut -c1-16)
  for extra in ${1//,/ } $(cut -d' ' -f2- "$marker" 2>/dev/null || true); do
    [[ " $wanted " == *" $extra "* ]] || wanted="$wanted $extra"
  done
  wanted=${wanted# }
  [[ -f $marker && $(cat "$marker") == "$stamp $wanted" ]] && return 0
  local python=${PYTHON:-python3}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
    { echo "$python is not Python 3.10 or newer; set PYTHON to one that is" >&2; exit 1; }
  echo "== installing into .venv (once; about two minutes): $wanted"
  [[ -x $venv/bin/python ]] || "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$root/constraints.txt" --editable "$root[${wanted// /,}]" ||
    { echo "installation failed; see the lines above, mend it and call again" >&2; exit 1; }
  echo "$stamp $wanted" >"$marker"
}
