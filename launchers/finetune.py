"""``mcsp finetune`` as a script."""

from mcsp.commands.main import launcher

main = launcher("finetune")

if __name__ == "__main__":
    raise SystemExit(main())
