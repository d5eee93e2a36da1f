"""Dead letters: list what is on their queue, select which to put back, put them back.

Read in this order:

    orders.py    what an operator can ask for, and which dead letters that selects
    report.py    what a run has seen and done
    redrive.py   the run itself

A dead letter is put on the requests queue first and deleted from its own then: a run that dies in
between leaves both, and the dead letter's `generation` makes the second sending of it a duplicate.
So a redrive may be repeated, also beside another one.
"""
