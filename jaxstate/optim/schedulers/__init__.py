"""torch's learning rate schedulers as values, and their states to and from torch's own dicts."""

from jaxstate.optim.schedulers._composed import ChainedScheduler as ChainedScheduler
from jaxstate.optim.schedulers._composed import SequentialLR as SequentialLR
from jaxstate.optim.schedulers._cosine import CosineAnnealingLR as CosineAnnealingLR
from jaxstate.optim.schedulers._cosine import CosineAnnealingWarmRestarts as CosineAnnealingWarmRestarts
from jaxstate.optim.schedulers._cyclic import CyclicLR as CyclicLR
from jaxstate.optim.schedulers._factors import ConstantLR as ConstantLR
from jaxstate.optim.schedulers._factors import ExponentialLR as ExponentialLR
from jaxstate.optim.schedulers._factors import LinearLR as LinearLR
from jaxstate.optim.schedulers._factors import MultiStepLR as MultiStepLR
from jaxstate.optim.schedulers._factors import PolynomialLR as PolynomialLR
from jaxstate.optim.schedulers._factors import StepLR as StepLR
from jaxstate.optim.schedulers._lambdas import LambdaLR as LambdaLR
from jaxstate.optim.schedulers._lambdas import MultiplicativeLR as MultiplicativeLR
from jaxstate.optim.schedulers._load_state_dict import load_state_dict as load_state_dict
from jaxstate.optim.schedulers._load_state_dict import state_dict as state_dict
from jaxstate.optim.schedulers._one_cycle import OneCycleLR as OneCycleLR
from jaxstate.optim.schedulers._plan import Plan as Plan
from jaxstate.optim.schedulers._plan import plan as plan
from jaxstate.optim.schedulers._plan import schedule as schedule
from jaxstate.optim.schedulers._plateau import ReduceLROnPlateau as ReduceLROnPlateau
from jaxstate.optim.schedulers._scheduler import Scheduler as Scheduler
from jaxstate.optim.schedulers._swa import SWALR as SWALR
