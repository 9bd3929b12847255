"""The pictures that requests refer to. Must not decode one."""

import asyncio
from pathlib import Path
from typing import Any, get_args

from mezzotint.assets import Asset
from mezzotint.errors import Fault, InvalidRequest, NotFound
from mezzotint.image_wire import Role
from mezzotint.operations.parts import Verbs


class AssetVerbs(Verbs):
    """What a caller may do with pictures of their own."""

    @property
    def max_upload_bytes(self) -> int:
        return self._parts.settings.max_upload_bytes

    def read_picture(self, text: str, field: str) -> bytes:
        """The bytes of base64 or a data URL. Raises InvalidRequest naming `field`; assets are not taken by name."""
        data = self._parts.assets.read_source(text, field)
        if isinstance(data, str):
            raise InvalidRequest([Fault(field=field, code="invalid_image", message=f"{field}: send base64 here")])
        return data

    async def add_mask(self, data: bytes, size: tuple[int, int], *, inverted: bool, rounded: bool, field: str) -> Asset:
        """A mask as AUTOMATIC1111 reads it, brought to a size."""
        return await self._parts.assets.put(data, "stencil", field=field, size=size, inverted=inverted, rounded=rounded)

    async def preprocessed(self, source: Asset, preprocessor: str, options: dict[str, Any]) -> Asset:
        """Its control map. Raises InvalidRequest with every fault, TryLater."""
        return await self._parts.assets.preprocess(source.id, preprocessor, options)

    async def upscaled(
        self, source: Asset, size: tuple[int, int], *, crops: bool, methods: tuple[str, str], share: float
    ) -> Asset:
        return await self._parts.assets.upscale(source, size, crops=crops, methods=methods, share=share)

    async def asset_bytes(self, asset: Asset) -> bytes:
        """The PNG as it was kept."""
        return await asyncio.to_thread(self._parts.assets.path(asset.id).read_bytes)

    async def add_asset(self, data: bytes, role: str, *, field: str | None = None) -> Asset:
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
