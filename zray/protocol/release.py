"""Which release of zray this is.

What    The version, where every layer can name it.
Caller  zray/__init__.py, zray/net/versions.py.
Never   decides what two releases may say to each other: PROTOCOL_VERSION in limits.py does.
"""

VERSION = "0.1.0"
