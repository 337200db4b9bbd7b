"""Pictures by diffusion: OpenAI's image routes over any diffusers pipeline.

    request    what a caller may ask for                edits      an image and a mask to what the pipeline paints
    families   what a pipeline can do and its defaults  batching   which waiting pictures are denoised together
    weights    how much memory a folder's weights take  placement  offload, tiling and the cap, from the budget
    models     where the pipeline comes from            tiny       the bundled one, built here from random numbers
    shapes     a request to what is denoised            assembly   from a folder to pipelines for every task
    pipeline   the pipeline, awake or asleep            engine     the calls: `ImageEngine`

Only `assembly`, `pipeline` and `tiny` touch torch and diffusers, and only once something is loaded.
"""
