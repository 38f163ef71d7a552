"""A corpus of any size made clean: read in pieces, worked on by several processes, written as it was laid out.

    inputs      which files a path, folder, pattern or address names
    reading     a file as pieces of some thousand lines
    formats     the texts of a piece, and the piece with other texts
    work        what becomes of a piece: scores, rewrites, figures
    workers     the processes that do it
    parts       finished pieces on the disk, joined into files in their order
    statistics  figures, added up; `page` shows them
    clean       the command; `dry_run` says beforehand what it will come to
"""
