"""Names that there are not, in the modules that import some of theirs only when asked for."""

from __future__ import annotations

import durable_batches
import durable_batches.stores
import durable_batches.testing

print(durable_batches.BatchOrchestartor)  # error
print(durable_batches.stores.PaperStore)  # error
print(durable_batches.testing.PaperClock)  # error
