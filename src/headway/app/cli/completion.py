"""`headway completion`: a script that completes commands, options and their values in bash, zsh or fish.

The script is static and made from the parsers of all commands, so completing starts no Python. In bash and zsh a value
is described by words, among which @files, @dirs and @runs stand for paths.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from headway.app.cli.terminal import Terminal

EXAMPLE = """
headway completion bash > ~/.local/share/bash-completion/completions/headway
headway completion zsh > ~/.zfunc/_headway
headway completion fish > ~/.config/fish/completions/headway.fish
"""
_FILES = ("PATH", "FILE", "FOLDER", "OUT", "TEXTS", "IMAGE", "I", "ITEM", "MODEL", "SOUND")  # metavars of paths


class _Value(NamedTuple):
    """What may follow an option, or be at a position: words, and whether more than one may follow."""

    words: tuple[str, ...] = ()
    is_repeated: bool = False


class _Option(NamedTuple):
    name: str
    help: str
    value: _Value | None  # None for a flag


class _Command(NamedTuple):
    options: list[_Option]
    positions: list[_Value]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=tuple(_SCRIPTS), metavar="|".join(_SCRIPTS), help="shell to complete in")


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    script = _SCRIPTS[args.shell](_commands())
    terminal.print(script, end="")
    terminal.print_result({"script": script})


def _commands() -> dict[str, _Command]:
    from headway.app.cli.main import COMMANDS, module_of
    from headway.app.cli.options import Parser, add_common

    names, commands = _names(), dict[str, _Command]()
    for command, summary in COMMANDS.items():
        module = import_module(module_of(command))
        parser = Parser(f"headway {command}", summary, module.EXAMPLE)
        module.arguments(parser)
        add_common(parser)
        described = commands[command] = _Command([], [])
        for action in parser._actions:
            value = _value(action, names, command)
            if not action.option_strings:
                described.positions.append(value)
            text = parser._get_formatter()._expand_help(action)
            for option in action.option_strings:
                described.options.append(_Option(option, text, None if action.nargs == 0 else value))
    return commands


def _names() -> dict[tuple[str, str], Sequence[str]]:
    """The names that a command's argument accepts, if no parser has them."""
    from headway.app.starters import STARTERS
    from headway.claims.experiments import select_claims
    from headway.data.registry import KNOWN_SETS
    from headway.nn.models.presets import PRESETS

    return {
        ("show", "name"): [*_recipes(), *PRESETS],
        ("bench", "shape"): [*PRESETS],
        ("data get", "name"): [*KNOWN_SETS],
        ("models make", "name"): [*STARTERS],
        ("claims", "names"): [claim.name for claim in select_claims([])],
    }


def _recipes() -> list[str]:
    from headway.domains import recipe_domains

    return [*recipe_domains()]


def _value(action: argparse.Action, names: Mapping[tuple[str, str], Sequence[str]], command: str) -> _Value:
    """The words for an argument, from its choices, or from its metavar such as RUN|MODEL, DIR or auto|torch|cpu."""
    is_repeated = action.nargs in ("+", "*")
    if action.choices is not None:
        return _Value(tuple(map(str, action.choices)), is_repeated)
    words = [*names.get((command, action.dest), ())]
    for part in str(action.metavar or "").split("|"):
        kind = part.lstrip("@").partition(".")[0]
        if kind == "RECIPE":
            words += [*_recipes(), "@files"]
        elif kind == "RUN":
            words += ["@runs", "@dirs"]
        elif kind == "DIR":
            words.append("@dirs")
        elif kind in _FILES:
            words.append("@files")
        elif kind.isalpha() and kind.islower():
            words.append(kind)
    if action.type is Path and not words:
        words.append("@files")
    if "@files" in words:
        words = [word for word in words if word != "@dirs"]
    return _Value(tuple(dict.fromkeys(words)), is_repeated)


_KIND = """\
# Completion of headway in {shell}, written by: headway completion {shell}
_headway_kind() {{  # sets kind to the words that may stand for $1, after the words $2...
  local current=$1 command=$2 many= position=0 word
  kind="{first}"
  [ $# -lt 2 ] && return
  shift 2
  case $command in
{groups}
  esac
  for word in "$@"; do
    case $word in
      -*) _headway_value "$command" "$word" ;;
      *) case $many in 1) many= ;; many) ;; *) position=$((position + 1)) ;; esac ;;
    esac
  done
  case $current in
    -*) _headway_options "$command"; return ;;
  esac
  [ -n "$many" ] && return
  kind=
  case "$command $position" in
{positions}
  esac
}}
_headway_value() {{  # sets kind and many for the value of an option
  kind= many=
  case "$1 $2" in
{values}
  esac
}}
_headway_options() {{
  case $1 in
{options}
  esac
}}
"""
_BASH = """\
_headway() {
  local cur=${COMP_WORDS[COMP_CWORD]} word path kind= before=()
  for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do [ "$word" = "=" ] || before+=("$word"); done
  [ "$cur" = "=" ] && cur=
  _headway_kind "$cur" ${before[@]+"${before[@]}"}
  COMPREPLY=()
  for word in $kind; do
    case $word in
      @files|@dirs)
        case $word in @files) word=file ;; *) word=directory ;; esac
        while IFS= read -r path; do COMPREPLY+=("$path"); done < <(compgen -A "$word" -- "$cur")
        compopt -o filenames 2>/dev/null ;;
      @runs)
        for path in runs/*/run.json; do
          path=${path%/run.json}
          [ -d "$path" ] && [[ $path == "$cur"* ]] && COMPREPLY+=("$path")
        done ;;
      *) [[ $word == "$cur"* ]] && COMPREPLY+=("$word") ;;
    esac
  done
}
complete -F _headway headway
"""
_ZSH = """\
_headway() {
  local kind= word current=$PREFIX
  local -a before=("${(@)words[2,CURRENT-1]}") found=()
  if [[ $current == --*=* ]]; then
    before+=("${current%%=*}")
    current=${current#*=}
    compset -P 1 '*='
  fi
  _headway_kind "$current" "${before[@]}"
  for word in ${=kind}; do
    case $word in
      @files) _files ;;
      @dirs) _files -/ ;;
      @runs) compadd -f -- runs/*/run.json(N:h) ;;
      *) found+=("$word") ;;
    esac
  done
  compadd -- "${found[@]}"
}
if [ "$funcstack[1]" = _headway ]; then _headway "$@"; else compdef _headway headway; fi  # autoloaded, or sourced
"""


def _kinds(shell: str, commands: Mapping[str, _Command]) -> str:
    """The functions that bash and zsh share: what may follow some words."""
    groups = defaultdict[str, list[str]](list)
    for command in commands:
        if " " in command:
            groups[command.split()[0]].append(command.split()[1])
    values = defaultdict[tuple[str, ...], list[str]](list)  # the patterns of options that take the same value
    positions, options = list[str](), list[str]()
    for command, (its_options, its_positions) in commands.items():
        words = " ".join(option.name for option in its_options)
        options.append(f'    "{command}") kind="{words}" ;;')
        for option in its_options:
            if option.value is not None:
                many = "many" if option.value.is_repeated else "1"
                values[many, *option.value.words].append(f'"{command} {option.name}"')
        for number, value in enumerate(its_positions):
            pattern = f'"{command} "*' if value.is_repeated else f'"{command} {number}"'
            positions.append(f'    {pattern}) kind="{" ".join(value.words)}" ;;')
    return _KIND.format(
        shell=shell,
        first=" ".join(dict.fromkeys(command.split()[0] for command in commands)),
        groups="\n".join(
            f'    {group}) kind="{" ".join(members)}"; [ $# -eq 0 ] && return; command="{group} $1"; shift ;;'
            for group, members in groups.items()
        ),
        positions="\n".join(positions),
        values="\n".join(
            f'    {"|".join(patterns)}) many={many} kind="{" ".join(words)}" ;;'
            for (many, *words), patterns in values.items()
        ),
        options="\n".join(options),
    )


def _bash(commands: Mapping[str, _Command]) -> str:
    return _kinds("bash", commands) + _BASH


def _zsh(commands: Mapping[str, _Command]) -> str:
    return "#compdef headway\n" + _kinds("zsh", commands) + _ZSH


_FISH = """\
# Completion of headway in fish, written by: headway completion fish
function __headway_at
    set -l words (commandline -opc)
    set -e words[1]
    test "$words" = "$argv"
end
function __headway_in
    set -l words (commandline -opc)
    set -e words[1]
    string match -q -- "$argv *" "$words "
end
function __headway_runs
    for path in runs/*/run.json
        string replace /run.json '' $path
    end
end
complete -c headway -f
"""


def _fish(commands: Mapping[str, _Command]) -> str:
    from headway.app.cli.main import COMMANDS

    lines = []
    for command, summary in COMMANDS.items():
        group, _, member = command.rpartition(" ")
        lines.append(f"-n {_fish_word(f'__headway_at {group}'.strip())} -a {member} -d {_fish_word(summary)}")
        if group:
            lines.append(f"-n __headway_at -a {group} -d {_fish_word(f'commands of {group}')}")
    for command, (options, positions) in commands.items():
        condition = f"-n {_fish_word(f'__headway_in {command}')}"
        for option in options:
            name = f"-l {option.name[2:]}" if option.name.startswith("--") else f"-s {option.name[1:]}"
            lines.append(f"{condition} {name} {_fish_value(option.value, '-r')} -d {_fish_word(option.help)}")
        lines += [f"{condition} {_fish_value(value)}" for value in positions if value.words]
    return _FISH + "".join(f"complete -c headway {line}\n" for line in dict.fromkeys(lines))


def _fish_value(value: _Value | None, required: str = "") -> str:
    if value is None:
        return ""
    paths = {"@runs": "(__headway_runs)", "@dirs": "(__fish_complete_directories)"}
    words = " ".join(paths.get(word, word) for word in value.words if word != "@files")
    files = "-F" if "@files" in value.words else "-f"
    return f"{required} {files}" + (f" -a {_fish_word(words)}" if words else "")


def _fish_word(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_SCRIPTS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
