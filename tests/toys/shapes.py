"""Shapes of whole models at toy size, for benchmarks that draw their weights."""

from toys import size as toy_size

from lpo_platform.models.random_weights import Shape

TOY = Shape(
    name="toy",
    resolution=32,
    unet={name: value for name, value in toy_size.unet().config.items() if not name.startswith("_")},
    vae={
        "latent_channels": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "block_out_channels": [8, 8, 8],
        "norm_num_groups": 4,
        "scaling_factor": 0.18215,
    },
    text_encoder={
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "max_position_embeddings": 6,
        "bos_token_id": 48,
        "eos_token_id": 49,
        "pad_token_id": 49,
    },
)

TOY_XL = Shape(
    name="toy-xl",
    resolution=32,
    unet=TOY.unet
    | {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2],
        "attention_head_dim": [2, 4],
        "cross_attention_dim": 64,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 20 + 6 * 8,
    },
    vae=TOY.vae,
    text_encoder=TOY.text_encoder | {"num_hidden_layers": 2},
    text_encoder_2=TOY.text_encoder | {"num_hidden_layers": 2, "projection_dim": 20},
)
