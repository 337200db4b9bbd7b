"""What the GPU suite's tests and benchmarks share: the machine, processes under test, their loops, and the report.

    machine   device, sizes, hardware figures        records   figures on their way into the report
    child     a process under test, from outside     tenant    the same, from inside
    loops     work that a tenant repeats             decoder   a Llama of plain torch, where vLLM is missing
    meter     memory in use on the device            node      a GPU agent on a thread
    renderer  Mitsuba's scenes                       warmth    weights to host memory and back
    models    what can be put to sleep               offence   a replica past its budget beside another

Everything runs on `cuda`, and, so that it can be tried without a GPU, on `cpu` at a small scale. Only torch and the
standard library are needed; what needs more says so.
"""
