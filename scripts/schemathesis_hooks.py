"""What schemathesis sends is changed here where the document can't say it."""

import schemathesis


@schemathesis.hook
def before_call(context, case, kwargs):
    """A deadline that fits is long enough for an answer: a short one is answered 504, as it says."""
    deadline = str((case.headers or {}).get("Stead-Deadline-Ms", ""))
    if deadline.isascii() and deadline.isdigit() and int(deadline) > 0:
        case.headers["Stead-Deadline-Ms"] = "20000"
