"""The handbook's use case with reasons: every decision is explained in the background, declined ones with what would have helped."""

from handbook import handbook

import mlpkg as ml
from mlpkg.examples.fraud.policy import fraud as example

plain = handbook(example)
fraud = ml.UseCase(
    "fraud", plain.features, policy=plain.policy, reasons=ml.Reasons(True, changeable={"decline": ["amount"]})
)
