"""An extension of griffe, which reads the docstrings: examples (`>>> ...`) become blocks of code on the site."""

import re

import griffe

# A paragraph that begins with a prompt.
EXAMPLE = re.compile(r"^>>> .*?(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)


class Examples(griffe.Extension):
    """Puts a fence around each example of a docstring."""

    def on_instance(self, *, obj, **kwargs):
        """Changes the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(lambda found: f"```pycon\n{found.group(0)}\n```", obj.docstring.value)
