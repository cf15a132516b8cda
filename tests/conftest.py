"""One thread a test process: networks this small gain nothing from more, and test
processes that run side by side lose a lot."""

import torch

torch.set_num_threads(1)
