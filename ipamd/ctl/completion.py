"""`ipamctl completion`: a script that completes commands, options, and names of pods, ENIs and addresses."""

from __future__ import annotations

import argparse

from ipamd.ctl.command import DONE, manual

SHELLS = ("bash", "zsh", "fish")
_PODS = "ipamctl waiting -o name 2>/dev/null; ipamctl pods -o name 2>/dev/null"
# Arguments whose values the daemon knows: command and argument -> what prints them, one on a line.
_ASKED = {
    ("explain", "subject"): f"echo pod; echo pool; {_PODS}; ipamctl addresses -o name 2>/dev/null",
    ("explain", "name"): _PODS,
    ("release", "attachment"): "ipamctl pods -o name 2>/dev/null",
}


def set_up(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS)
    manual(
        parser,
        "Names of pods are asked from the daemon when they are completed.",
        examples={
            "ipamctl completion bash > /etc/bash_completion.d/ipamctl": "needs the package bash-completion",
            "source <(ipamctl completion bash)": "for this shell only",
            "ipamctl completion zsh > /usr/local/share/zsh/site-functions/_ipamctl": "",
            "ipamctl completion fish > /etc/fish/completions/ipamctl.fish": "",
        },
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    import shtab

    from ipamd.ctl.__main__ import make_parser

    parser = make_parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for (command, argument), asked in _ASKED.items():
        (action,) = (each for each in commands.choices[command]._actions if each.dest == argument)
        action.complete = shtab.cmd(asked)  # shtab's own mark
    print(shtab.complete(parser, args.shell))
    return DONE
