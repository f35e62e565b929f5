"""Ending what runs beside."""

import asyncio
from typing import Any


async def end(task: asyncio.Future[Any]) -> None:
    """Cancel a task and wait until it is over."""
    task.cancel()
    await asyncio.wait([task])
