"""What a step costs, before it is taken: rates of the machine, passes of the network, ways of taking a step."""

from tf_natgrad.costs.choice import choose, free_memory, ways_of
from tf_natgrad.costs.machine import Machine, measured
from tf_natgrad.costs.network import Network, network_of
from tf_natgrad.costs.ways import Prices, Way

__all__ = ["Machine", "Network", "Prices", "Way", "choose", "free_memory", "measured", "network_of", "ways_of"]
