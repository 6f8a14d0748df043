"""The Feast side: declarations → registry → plan, batch rows, and Feast's online-store adapter.

The only room that imports Feast (three seconds, 350 MB), and never loaded on the serving path: what
runs reads the plan. Modules that need no Feast (`lock`, `materialize`, `numbering`, `transforms`)
do not load it.
"""

from catalog.lazy_checks import install

install()  # before anything here imports Feast
