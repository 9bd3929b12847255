"""What the operations work on, in one value. Must not do anything."""

from dataclasses import dataclass

from mezzotint.assets import Assets
from mezzotint.batch_watch import BatchWatch
from mezzotint.catalog import Catalog
from mezzotint.config import Settings
from mezzotint.dispatcher import Dispatcher
from mezzotint.estimates import Estimates
from mezzotint.events import Events
from mezzotint.keyring import Keyring
from mezzotint.measurements import Measurements
from mezzotint.metrics import Metrics
from mezzotint.quotas import Quotas
from mezzotint.refs import Refs
from mezzotint.store.blobs import Blobs
from mezzotint.store.sql import Store
from mezzotint.tuning import Choices
from mezzotint.webhook_rules import Policy
from mezzotint.workers.base import Supervisor


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    settings: Settings
    catalog: Catalog
    store: Store
    blobs: Blobs
    supervisor: Supervisor
    dispatcher: Dispatcher
    refs: Refs
    measurements: Measurements
    events: Events
    assets: Assets
    choices: Choices
    batch_watch: BatchWatch
    estimates: Estimates
    keyring: Keyring
    quotas: Quotas
    metrics: Metrics
    webhooks: Policy


class Verbs:
    """The operations of one domain. Safe to call from any number of coroutines of one loop."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
