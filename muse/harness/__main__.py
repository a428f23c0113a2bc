"""The command line of the lm-evaluation-harness with this project's adapter: python -m muse.harness --model muse ..."""

from muse.host.large_pages import ask_for_large_pages

if __name__ == "__main__":
    ask_for_large_pages()
    from .harness import command_line

    command_line()
