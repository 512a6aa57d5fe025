"""What runs at the far end of a transfer. Nothing of it has to be installed there.

The end at home sends the texts of these files, and of `rules`, `incoming` and `receiving`, which
both ends have, through ssh to the Python there, so they import the standard library and each other
alone. `serving` answers what home asks; `exchange` takes a push in and sets a pull aside;
`environment` makes the Python that trains, `jobs` and `slurm` let it; `folder` is what they stand
on: one folder there, the target, which serves any number of runs:

    code             a link to the source tree of the last push, under .strata/code/
    runs/<name>/     the run, as at home, with job.json and job.log of the job that trains it
    cache/           token shards (STRATA_CACHE points here)
    venv/            the environment

Both ways a transfer has three steps. Files go to a staging folder; they are held against the
SHA-256 sums of what was to be sent; only then are they renamed into place. So a cut line leaves
the run as it was, and a push that was cut while its files were being renamed is finished by
whatever is asked there next.
"""
