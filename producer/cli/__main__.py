"""Entry point of `python -m producer.cli`."""

from producer.cli.main import main

if __name__ == "__main__":
    main(prog_name="producer")
