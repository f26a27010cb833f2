"""Where things lie in the checkout."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"
REAL = ROOT.parent / "shared" / "data" / "card_transactions.parquet"
