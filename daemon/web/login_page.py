"""The login form, and the texts it and refusals are made of."""

import tomllib
from functools import cache
from html import escape
from importlib.resources import files


@cache
def texts() -> dict[str, str]:
    """[login] of texts.toml."""
    read = tomllib.loads(files("daemon.web").joinpath("texts.toml").read_text(encoding="utf-8"))["login"]
    return {str(key): str(value) for key, value in read.items()}


def login_page(message: str = "") -> str:
    """HTML. `message` says why the last try failed."""
    text = {key: escape(value) for key, value in texts().items()}
    alert = f'<p role="alert">{escape(message)}</p>' if message else ""
    return f"""<!doctype html>
<html lang="{text["language"]}">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><link rel="stylesheet" href="/static/page.css"><title>{text["title"]}</title></head>
<body><main><h1>{text["heading"]}</h1>{alert}
<form method="post" action="/login">
<p><label>{text["name"]}<br><input name="name" autocomplete="username" maxlength="64" autofocus></label></p>
<p><label>{text["password"]}<br><input name="password" type="password" autocomplete="current-password" required></label></p>
<p><button>{text["submit"]}</button></p>
</form></main></body>
</html>
"""
