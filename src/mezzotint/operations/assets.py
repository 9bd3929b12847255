"""The pictures that requests refer to. Must not decode one."""

import asyncio
from pathlib import Path
from typing import get_args

from mezzotint.assets import Asset
from mezzotint.errors import Fault, InvalidRequest, NotFound
from mezzotint.image_wire import Role
from mezzotint.operations.parts import Verbs


class AssetVerbs(Verbs):
    """What a caller may do with pictures of their own."""

    @property
    def max_upload_bytes(self) -> int:
        return self._parts.settings.max_upload_bytes

    async def add_asset(self, data: bytes, role: str = "image", *, field: str | None = None) -> Asset:
        """Keep a picture. On disk when it returns. Raises InvalidRequest naming `field`, TryLater without room."""
        known: Role | None = next((one for one in get_args(Role) if one == role), None)
        if known is None:
            message = f"role must be {' or '.join(get_args(Role))}; got {role[:64]!r}"
            raise InvalidRequest([Fault(field="role", code="invalid_value", message=message)])
        return await self._parts.assets.put(data, known, field=field)

    async def asset(self, asset_id: str) -> tuple[Asset, Path]:
        found = await asyncio.to_thread(self._parts.assets.find, asset_id)
        if found is None:
            raise NotFound(f"asset {asset_id[:64]!r} is not here", code="asset_not_found")
        return found, self._parts.assets.path(asset_id)
