"""What is known of a claim about a network: that its energy falls, or that F is a contraction."""

from typing import Literal

# `guaranteed` by theory, for any input; `observed` wherever it was looked for, without a guarantee; `undecided` where a
# search came to no end; `violated` somewhere.
Verdict = Literal["guaranteed", "observed", "undecided", "violated"]
