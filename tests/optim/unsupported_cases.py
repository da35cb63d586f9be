"""The cases of PyTorch's own table of optimizers that are not run against ours, each with the reason.

`test_optim_db.py` holds this complete: a case is run or stands here, and one that stands here and would work
is an error.
"""

CAPTURABLE = "torch steps with capturable=True on an accelerator only, and refuses to on a CPU"

# Optimizers of which there is none here.
OPTIMIZERS: dict[str, str] = {}

# Optimizers whose cases are run where their gradients, layouts and closures are made.
ELSEWHERE = {
    "LBFGS": "test_lbfgs.py",
    "Adafactor": "test_matrix_optimizers.py",
    "Muon": "test_matrix_optimizers.py",
    "SparseAdam": "test_sparse_adam.py",
}

# Arguments.
INPUTS = dict.fromkeys(
    [
        "Adadelta(capturable=True)",
        "Adadelta(weight_decay=0.1, capturable=True)",
        "Adadelta(lr=tensor, capturable=True)",
        "Adam(capturable=True)",
        "Adam(weight_decay=0.1, amsgrad=True, capturable=True)",
        "Adam(lr=tensor, amsgrad=True, capturable=True)",
        "Adam(lr=tensor, betas=(tensor, tensor), amsgrad=True, capturable=True)",
        "Adam(lr=tensor, betas=(tensor, tensor), amsgrad=False, capturable=True)",
        "Adamax(capturable=True)",
        "Adamax(weight_decay=0.9, maximize=True, capturable=True)",
        "Adamax(weight_decay=0, maximize=True, capturable=True)",
        "Adamax(weight_decay=0.9, maximize=False, capturable=True)",
        "Adamax(lr=tensor, weight_decay=0.9, maximize=False, capturable=True)",
        "AdamW(capturable=True)",
        "AdamW(weight_decay=0.1, amsgrad=True, capturable=True)",
        "AdamW(lr=tensor, amsgrad=True, capturable=True)",
        "AdamW(lr=tensor, betas=(tensor, tensor), amsgrad=True, capturable=True)",
        "AdamW(lr=tensor, betas=(tensor, tensor), amsgrad=False, capturable=True)",
        "ASGD(capturable=True)",
        "ASGD(maximize=True, capturable=True)",
        "ASGD(weight_decay=0.1, capturable=True)",
        "ASGD(weight_decay=0.1, maximize=True, capturable=True)",
        "ASGD(lr=tensor, weight_decay=0.1, maximize=True, capturable=True)",
        "NAdam(capturable=True)",
        "NAdam(weight_decay=0.9, momentum_decay=0.006, capturable=True)",
        "NAdam(weight_decay=0.9, momentum_decay=0.006, decoupled_weight_decay=True, capturable=True)",
        "NAdam(lr=tensor, weight_decay=0.9, momentum_decay=0.006, decoupled_weight_decay=True, "
        "capturable=True)",
        "RAdam(capturable=True)",
        "RAdam(capturable=True, weight_decay=0.1)",
        "RAdam(capturable=True, weight_decay=0.1, decoupled_weight_decay=True)",
        "RAdam(lr=tensor, capturable=True, weight_decay=0.1, decoupled_weight_decay=True)",
        "RMSprop(capturable=True)",
        "RMSprop(weight_decay=0.1, maximize=True, capturable=True)",
        "RMSprop(lr=tensor, capturable=True)",
        "Rprop(capturable=True)",
        "Rprop(lr=tensor, capturable=True)",
    ],
    CAPTURABLE,
)

_TREE = "parameters are the leaves of one tree, and each has its path for a name"

# The descriptions of wrong arguments.
ERRORS = {
    "invalid param type": "a tree may be a single array",
    "a param group cannot have duplicate parameters": _TREE,
    "all optimizer params should be with/without names": _TREE,
    "all optimizer param groups should be with/without names.": _TREE,
}
