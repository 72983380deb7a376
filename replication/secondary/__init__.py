"""The program on the far side: it alone touches the secondary. Standard library only, Python 3.9 or later.

A frame of observations comes in (protocol.py); reconcile.py compares them with the index (index.py,
sql.py) and plans steps; namespace.py carries the steps out through directory descriptors (tree.py);
receiver.py takes content. Everything of ours on the far side lies below ``ROOT/.seamark`` (layout.py).
"""
