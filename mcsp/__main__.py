"""``python -m mcsp VERB``, which is also what ``deepspeed --module mcsp pretrain`` starts."""

from mcsp.commands.main import main

if __name__ == "__main__":
    main()
