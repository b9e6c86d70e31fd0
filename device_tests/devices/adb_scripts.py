"""Shell scripts for the device, as text. Every name that is put in is quoted; every file of ours is under ROOT.

They use what Android's shell (mksh) and toybox have had since Android 8.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from device_tests.devices import sysfs
from device_tests.devices.bundle import IN, OUT

ROOT = "/data/local/tmp/adakv"
INCOMING, HASHES, PID = ".incoming", "files.sha256", "run.pid"

PROPERTIES = (
    "ro.product.manufacturer",
    "ro.product.model",
    "ro.product.cpu.abilist",
    "ro.soc.manufacturer",
    "ro.soc.model",
    "ro.board.platform",
    "ro.build.fingerprint",
    "ro.boot.qemu",
    "ro.kernel.qemu",
)
SECTION = "==> "

#: Ends the process that a launcher recorded, if it still is that process (its start time says so).
END_RECORDED = f"""if cd {ROOT} 2>/dev/null && [ -f {PID} ]; then
  read -r pid start <{PID}
  line=$(cat "/proc/$pid/stat" 2>/dev/null)
  set -- ${{line##*') '}}
  [ -n "$start" ] && [ "${{20}}" = "$start" ] && kill -9 "$pid"
  rm -f {PID}
fi 2>/dev/null
"""

FORGET_INCOMING = f"rm -rf {ROOT}/{INCOMING}"
CLEAN = f"{END_RECORDED}cd {ROOT} 2>/dev/null && rm -rf {INCOMING} {OUT} && mkdir -p {OUT}\ntrue"


def launch(command: Sequence[str]) -> str:
    """Run a command in ROOT, its process recorded while it lives. The real adb daemon sends SIGHUP to this shell when
    the host goes away, so it passes that on."""
    return f"""{END_RECORDED}cd {ROOT} && mkdir -p {IN} {OUT} && {{
  exec {shlex.join(command)} </dev/null &
  pid=$!
  trap 'kill -9 $pid 2>/dev/null; rm -f {PID}; exit 129' HUP INT TERM
  line=$(cat /proc/$pid/stat 2>/dev/null)
  set -- ${{line##*') '}}
  printf '%s %s\\n' $pid "${{20}}" >{PID}
  wait $pid
  status=$?
  rm -f {PID}
  (exit $status)
}}"""


def state(names: Iterable[str]) -> str:
    """Free space, the list of hashes, and size and time of the named files; a new, empty folder for what comes in."""
    words = " ".join(map(shlex.quote, names))
    return f"""mkdir -p {ROOT} && cd {ROOT} && rm -rf {INCOMING} && mkdir -p {INCOMING} {IN} {OUT} && {{
  df -k {ROOT} | tail -n 1
  cat {HASHES} 2>/dev/null
  printf '{SECTION}\\n'
  stat -c '%s %Y %n' -- {words} 2>/dev/null
  true
}}"""


def hashes(names: Iterable[str], folder: str = "") -> str:
    """SHA-256 of files in ROOT or a folder of it."""
    return f"cd {ROOT}/{folder} && sha256sum -- {' '.join(map(shlex.quote, names))}"


def install(files: Mapping[str, tuple[str, bool]]) -> str:
    """Move files from INCOMING, where each is named by its hash, to their places. files: name -> (hash, executable).
    Each appears whole or not at all. Prints size and time of each."""
    folders = {str(PurePosixPath(name).parent) for name in files}
    lines = [f"cd {ROOT} && mkdir -p -- {' '.join(map(shlex.quote, sorted(folders)))}"]
    left = [digest for digest, _ in files.values()]
    for name, (digest, executable) in files.items():
        left.remove(digest)
        source, target = f"{INCOMING}/{digest}", shlex.quote(name)
        if digest in left:  # wanted again under another name
            lines.append(f"cp {source} {source}.copy")
            source += ".copy"
        lines.append(f"chmod {755 if executable else 644} {source} && mv -f -- {source} {target}")
    lines.append(f"stat -c '%s %Y %n' -- {' '.join(map(shlex.quote, files))}")
    return " && ".join(lines)


def record_hashes(lines: Iterable[str]) -> str:
    """Write the list of hashes, at once."""
    words = " ".join(map(shlex.quote, lines))
    return f"cd {ROOT} && printf '%s\\n' {words} >{HASHES}.new && mv -f {HASHES}.new {HASHES}"


def conditions() -> str:
    """All that `android_conditions` understands, in one go; the shell itself reads the many small files of /sys."""
    one_line = " ".join(p for p in sysfs.PATTERNS if p.startswith("/sys/"))
    whole = " ".join(p for p in sysfs.PATTERNS if not p.startswith("/sys/"))
    return f"""{{
  for file in {one_line}; do read -r line <$file && printf '\\n{SECTION}%s\\n%s\\n' $file "$line"; done
  for file in {whole}; do printf '\\n{SECTION}%s\\n' $file; cat $file; done
  for name in {" ".join(PROPERTIES)}; do printf '\\n{SECTION}%s\\n' $name; getprop $name; done
  for name in battery thermalservice; do printf '\\n{SECTION}%s\\n' $name; dumpsys $name; done
}} 2>/dev/null
true"""
