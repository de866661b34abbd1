"""The contract that every activation keeps: of the table, and of a user's own.

from polycom_jax.testing import check_activation
check_activation(act)      # in a test; raises ContractError where it fails
"""

from polycom_jax.testing.contract import CHECKS as CHECKS
from polycom_jax.testing.contract import QUICK_CHECKS as QUICK_CHECKS
from polycom_jax.testing.contract import check_activation as check_activation
from polycom_jax.testing.examples import ContractError as ContractError
from polycom_jax.testing.examples import Exact as Exact

__all__ = ["CHECKS", "QUICK_CHECKS", "ContractError", "Exact", "check_activation"]
