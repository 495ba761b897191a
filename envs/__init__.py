"""Things you can step; importing this package registers their ids with Gymnasium."""

import gymnasium

gymnasium.register("orrery/Room-v0", entry_point="envs.room:Room")
gymnasium.register("orrery/Orbit-v0", entry_point="envs.orbit:Orbit")
gymnasium.register("orrery/Lab-v0", entry_point="envs.lab:Lab")
gymnasium.register(
    "orrery/Dream-v0", entry_point="envs.dream:Dream", vector_entry_point="envs.vector_dream:VectorDream"
)
