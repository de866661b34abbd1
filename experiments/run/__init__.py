"""What a run is made of, and what programs share that work on one.

Settings: `config` declares them; `command` and `yaml_file` read them; `resuming` says which of them
a resumed run may change; `devices` and `tpu_configs` ask whether they fit the machine.
The folder: `folder`, `files`, and `lock`, for one writer at a time; `shared_disk` for processes.
What runs: `corpus`, `starting` and `compiled`; `signals` ends it early, `profile` traces it,
and `planned` is its step on devices that are not there. The machine: `host_memory`,
`host_collectives` and `device_memory`.
Numbers: `step_metrics` reads those of each step, `metrics` writes metrics.jsonl, `trackers` shows
them elsewhere; `provenance` and `environment` say where they come from.
For people: `summary` before a run; `report`, `plots` and `sampling` after it.
Finished runs as models: `model_loading`, `checkpoint_names`, `hf_tokenizer`.
Studies: `settings` of a folder, `kept_state` of a run, `rate_search`, `statistics`, and
`named_activations`.
"""
