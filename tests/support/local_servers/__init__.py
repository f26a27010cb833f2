"""Real servers on free ports of the loopback interface, with their data and logs under a folder: for tests and development.

`python -m local_servers start FOLDER` starts one of each, `stop FOLDER` stops them; `install` gets what needs no administrator.
"""
