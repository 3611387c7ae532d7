"""``mcsp pretrain`` as a script, for ``deepspeed launchers/pretrain.py``."""

from mcsp.commands.main import launcher

main = launcher("pretrain")

if __name__ == "__main__":
    raise SystemExit(main())
