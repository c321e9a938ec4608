"""GPU side of longtake: sampler, models, media and the job worker. Stands on `app`'s contract."""
