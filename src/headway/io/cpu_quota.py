"""The processor time that the control groups of a container allow."""

from __future__ import annotations

from pathlib import Path


def cpu_quota(groups: Path, membership: Path) -> float | None:
    """The CPU quota, in cores, of the control groups listed in the file `membership`, read from `groups` by version 1
    or 2; None: no limit.
    """
    quotas = []
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # not Linux
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # In a container the path may be the host's, while the file system starts at the container's group.
        for root in (groups / controllers, groups / "cpu") if controllers else (groups, groups / "unified"):
            folder = root / path.strip("/")
            for group in (folder, *folder.parents):
                if not group.is_relative_to(root):
                    continue
                try:
                    if (group / "cpu.max").exists():
                        limit, period = (group / "cpu.max").read_text().split()
                    else:
                        fields = (group / f"cpu.cfs_{name}_us" for name in ("quota", "period"))
                        limit, period = (field.read_text().strip() for field in fields)
                    if limit not in ("max", "-1"):
                        quotas.append(int(limit) / int(period))
                except (OSError, ValueError, ZeroDivisionError):
                    continue
    return min(quotas, default=None)
