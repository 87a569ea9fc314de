"""Environments for agents: gymnasium's and the user's own, stepped side by side, recorded and filmed."""

from headway.environments.copies import Copies, Step
from headway.environments.demonstrating import Shots, check_demonstrable, check_together, demonstrations, robot_numbers
from headway.environments.making import VARIABLE, check_stored, make_environment, only_one
from headway.environments.playing import AT_ONCE, Playing, Returns, check_single, played, worth
from headway.environments.policies import Policy, default_policy, open_policy
from headway.environments.recording import TRIES, Demonstrating, Mixture, Recorder
from headway.environments.scores import PICTURED, SEEDS, check_episodes, normalised, seeds_of, start_of, targets_of
from headway.environments.spaces import Spaces, spaces_of

__all__ = [
    "AT_ONCE",
    "PICTURED",
    "SEEDS",
    "TRIES",
    "VARIABLE",
    "Copies",
    "Demonstrating",
    "Mixture",
    "Playing",
    "Policy",
    "Recorder",
    "Returns",
    "Shots",
    "Spaces",
    "Step",
    "check_demonstrable",
    "check_episodes",
    "check_single",
    "check_stored",
    "check_together",
    "default_policy",
    "demonstrations",
    "make_environment",
    "normalised",
    "only_one",
    "open_policy",
    "played",
    "robot_numbers",
    "seeds_of",
    "spaces_of",
    "start_of",
    "targets_of",
    "worth",
]
