"""Eight devices that are not there: checkpoints move from one mesh to another."""

import os
import subprocess
import sys
from pathlib import Path


def test_saved_on_one_mesh_and_restored_on_others(tmp_path):
    script = Path(__file__).parent / "on_eight_devices.py"
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, **flags}, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "all of it"
