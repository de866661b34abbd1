"""What a program on virtual devices asks of XLA's collectives."""

import os

PATIENT = {
    "xla_cpu_collective_call_warn_stuck_timeout_seconds": 60,
    "xla_cpu_collective_call_terminate_timeout_seconds": 600,
}


def patient_collectives() -> bool:
    """Lets collectives between virtual devices of one CPU wait ten minutes for each other.

    XLA takes 40 seconds, and then ends the process by a crash: eight devices on two busy cores come
    to a collective one after the other. It has to be called before JAX is imported. On one device,
    or real ones, nothing is changed.

    Returns:
        Whether it took effect: virtual devices are asked for, and the user has not set the limits.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    virtual = "xla_force_host_platform_device_count" in flags or "JAX_NUM_CPU_DEVICES" in os.environ
    if not virtual or any(name in flags for name in PATIENT):
        return False
    ours = [f"--{name}={value}" for name, value in PATIENT.items()]
    os.environ["XLA_FLAGS"] = " ".join(filter(None, [flags, *ours]))
    return True
