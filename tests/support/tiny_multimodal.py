"""Tiny models over images and texts together with random weights, made on the spot."""

import io
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from transformers import (
    BlipConfig,
    BlipForQuestionAnswering,
    BlipImageProcessor,
    CLIPImageProcessor,
    CLIPTokenizer,
    DonutImageProcessor,
    DonutSwinConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LayoutLMConfig,
    LayoutLMForQuestionAnswering,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MBartConfig,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessor,
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2Config,
    Qwen2ForCausalLM,
    SamConfig,
    SamImageProcessor,
    SamModel,
    SpeechT5Config,
    SpeechT5ForTextToSpeech,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    SuperGlueConfig,
    SuperGlueForKeypointMatching,
    SuperGlueImageProcessor,
    SuperPointConfig,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VideoMAEImageProcessor,
    ViltConfig,
    ViltForQuestionAnswering,
    ViltImageProcessor,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    VitsConfig,
    VitsModel,
    VitsTokenizer,
    WhisperFeatureExtractor,
)

from tests.support.tiny_media import labeled, save
from tests.support.tiny_models import byte_level_files, wordpiece
from tests.support.tiny_tokenizers import byte_level

_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_VISION = {**_SMALL, "image_size": 32, "patch_size": 8}
#: A chat template as LLaVA has it, for messages of texts and of parts.
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}<{{ part['type'] }}>{% endif %}{% endfor %}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def with_tokens(*tokens: str) -> PreTrainedTokenizerFast:
    tokenizer = byte_level("<s> $A", limit=512)
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    return tokenizer


def llava(directory: Path, template: str | None = TEMPLATE) -> Path:
    tokenizer = with_tokens("<image>")
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(directory)  # fmt: skip
    torch.manual_seed(11)
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **_VISION, "projection_dim": 16},
        text_config=LlamaConfig(**_SMALL, vocab_size=len(tokenizer), max_position_embeddings=512,
                                num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), image_seq_length=16,
    )  # fmt: skip
    return save(LlavaForConditionalGeneration(config), directory)


def idefics3(directory: Path) -> Path:
    """A model that vLLM serves without torchvision: images are cut into parts, each of four tokens."""
    tokenizer = with_tokens(
        "<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>",
        *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
    )  # fmt: skip
    images = Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=TEMPLATE).save_pretrained(directory)
    torch.manual_seed(24)
    small = {**_SMALL, "hidden_size": 64}  # heads of 32, the least that vLLM takes
    config = Idefics3Config(
        vision_config={**small, "image_size": 32, "patch_size": 8},
        text_config={"model_type": "llama", **small, "vocab_size": len(tokenizer), "max_position_embeddings": 512,
                     "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), scale_factor=2, pad_token_id=0,
    )  # fmt: skip
    return save(Idefics3ForConditionalGeneration(config), directory)


def vilt(directory: Path) -> Path:
    tokenizer = wordpiece(directory)
    ViltImageProcessor(size={"shortest_edge": 32}).save_pretrained(directory)
    torch.manual_seed(12)
    config = ViltConfig(**_VISION, vocab_size=len(tokenizer), max_position_embeddings=64, **labeled())
    return save(ViltForQuestionAnswering(config), directory)


def blip(directory: Path) -> Path:
    tokenizer = wordpiece(directory)
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    settings["model_input_names"] = ["input_ids", "attention_mask"]
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(directory)
    torch.manual_seed(13)
    ids: dict[str, Any] = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id,
                           "sep_token_id": tokenizer.sep_token_id, "pad_token_id": tokenizer.pad_token_id}  # fmt: skip
    config = BlipConfig(
        text_config={**_SMALL, "vocab_size": len(tokenizer), "encoder_hidden_size": 32, "projection_dim": 16,
                     "max_position_embeddings": 64, **ids},
        vision_config={**_VISION, "projection_dim": 16}, projection_dim=16, image_text_hidden_size=16,
    )  # fmt: skip
    return save(BlipForQuestionAnswering(config), directory)


def layoutlm(directory: Path) -> Path:
    tokenizer = wordpiece(directory)
    torch.manual_seed(14)
    config = LayoutLMConfig(**_SMALL, vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=0)
    return save(LayoutLMForQuestionAnswering(config), directory)


def owlvit(directory: Path) -> Path:
    vocabulary, merges = byte_level_files(directory)
    vocabulary |= {"<pad>": vocabulary["<s>"], "<s>": vocabulary["<pad>"]}  # the model takes 0 for no text
    CLIPTokenizer(vocab=vocabulary, merges=merges, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
                  pad_token="<pad>", model_max_length=16).save_pretrained(directory)  # fmt: skip
    OwlViTImageProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        directory
    )
    torch.manual_seed(15)
    config = OwlViTConfig(
        text_config={**_SMALL, "vocab_size": len(vocabulary), "max_position_embeddings": 16, "pad_token_id": 0,
                     "eos_token_id": vocabulary["</s>"], "bos_token_id": vocabulary["<s>"]},
        vision_config=_VISION, projection_dim=32,
    )  # fmt: skip
    return save(OwlViTForObjectDetection(config), directory)


def qwen2_audio(directory: Path) -> Path:
    tokenizer = with_tokens("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
    sounds = WhisperFeatureExtractor(feature_size=8, chunk_length=2, n_fft=400)
    template = TEMPLATE.replace("<{{ part['type'] }}>", "<|audio_bos|><|AUDIO|><|audio_eos|>")
    Qwen2AudioProcessor(sounds, tokenizer, chat_template=template).save_pretrained(directory)
    torch.manual_seed(17)
    config = Qwen2AudioConfig(
        audio_config={"num_mel_bins": 8, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
                      "d_model": 32, "max_source_positions": 100},
        text_config=Qwen2Config(**_SMALL, vocab_size=len(tokenizer), max_position_embeddings=512,
                                num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0),
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )  # fmt: skip
    return save(Qwen2AudioForConditionalGeneration(config), directory)


def decisive(directory: Path) -> Path:
    tokenizer = with_tokens()
    tokenizer.add_tokens(["Yes", "No"])
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)
    torch.manual_seed(18)
    config = Qwen2Config(**_SMALL, vocab_size=len(tokenizer) + 8, max_position_embeddings=512, num_key_value_heads=2)
    return save(Qwen2ForCausalLM(config), directory)


def videomae(directory: Path) -> Path:
    VideoMAEImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(directory)  # fmt: skip
    torch.manual_seed(19)
    config = VideoMAEConfig(**_VISION, num_frames=4, tubelet_size=2, **labeled())
    return save(VideoMAEForVideoClassification(config), directory)


def vits(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    letters = {letter: number for number, letter in enumerate(["<pad>", "<unk>", " ", *"abcdefghijklmnopqrstuvwxyz"])}
    (directory / "vocab.json").write_text(json.dumps(letters))
    VitsTokenizer(
        str(directory / "vocab.json"), pad_token="<pad>", unk_token="<unk>", phonemize=False
    ).save_pretrained(directory)  # fmt: skip
    torch.manual_seed(20)
    config = VitsConfig(
        vocab_size=len(letters), hidden_size=16, num_hidden_layers=1, ffn_dim=16, flow_size=16, spectrogram_bins=9,
        upsample_initial_channel=16, upsample_rates=(4, 4), upsample_kernel_sizes=(8, 8), resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1,),), duration_predictor_filter_channels=16, prior_encoder_num_flows=1,
        prior_encoder_num_wavenet_layers=1, posterior_encoder_num_wavenet_layers=1, duration_predictor_num_flows=1,
        depth_separable_num_layers=1, sampling_rate=8000, num_speakers=2, speaker_embedding_size=8,
    )  # fmt: skip
    VitsModel(config).eval().save_pretrained(directory)  # its own initialization: larger weights speak for minutes
    return directory


def speech_t5(directory: Path, *, vocoder: bool = True) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    with_tokens().save_pretrained(directory)
    torch.manual_seed(21)
    config = SpeechT5Config(
        vocab_size=400, hidden_size=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_mel_bins=8,
        speech_decoder_prenet_units=8, speech_decoder_postnet_units=8, speech_decoder_postnet_layers=1,
        speaker_embedding_dim=4, positional_dropout=0.0, speech_decoder_prenet_dropout=0.0,
    )  # fmt: skip
    SpeechT5ForTextToSpeech(config).eval().save_pretrained(directory)
    if vocoder:
        small = SpeechT5HifiGanConfig(
            model_in_dim=8, upsample_initial_channel=16, upsample_rates=[4, 4], upsample_kernel_sizes=[8, 8],
            resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1]],
        )  # fmt: skip
        SpeechT5HifiGan(small).save_pretrained(directory / "vocoder")
    return directory


def donut(directory: Path) -> Path:
    tokenizer = with_tokens("<s_docvqa>", "<s_question>", "</s_question>", "<s_answer>", "</s_answer>")
    tokenizer.save_pretrained(directory)
    DonutImageProcessor(size={"height": 32, "width": 32}, do_align_long_axis=False).save_pretrained(directory)
    torch.manual_seed(23)
    encoder = DonutSwinConfig(
        image_size=[32, 32], patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
    )
    decoder = MBartConfig(
        vocab_size=len(tokenizer), d_model=16, decoder_layers=1, encoder_layers=1, decoder_attention_heads=2,
        decoder_ffn_dim=16, max_position_embeddings=128, is_decoder=True, add_cross_attention=True, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    model = VisionEncoderDecoderModel(config)
    model.generation_config.update(decoder_start_token_id=1, pad_token_id=0, eos_token_id=2, max_new_tokens=6)
    return save(model, directory)


def superglue(directory: Path) -> Path:
    SuperGlueImageProcessor(size={"height": 64, "width": 64}).save_pretrained(directory)
    torch.manual_seed(22)
    points = SuperPointConfig(
        encoder_hidden_sizes=[8, 8, 16, 16], decoder_hidden_size=16, keypoint_decoder_dim=65, descriptor_decoder_dim=16,
        keypoint_threshold=0.0, max_keypoints=12,
    )  # fmt: skip
    config = SuperGlueConfig(
        keypoint_detector_config=points, hidden_size=16, keypoint_encoder_sizes=[8, 16], num_attention_heads=2,
        gnn_layers_types=["self", "cross"], sinkhorn_iterations=5,
    )  # fmt: skip
    return save(SuperGlueForKeypointMatching(config), directory)


def clip_of(frames: int, seed: int = 0, side: int = 40) -> bytes:
    """Return a video of random frames, as MP4."""
    pixels = np.random.default_rng(seed).integers(0, 255, (frames, side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = side
        for frame in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def sam(directory: Path) -> Path:
    SamImageProcessor(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}, mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    ).save_pretrained(directory)  # fmt: skip
    torch.manual_seed(16)
    config = SamConfig(
        vision_config={**_SMALL, "image_size": 64, "patch_size": 16, "output_channels": 16, "num_pos_feats": 8,
                       "global_attn_indexes": [0], "mlp_dim": 64, "window_size": 2},
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config={"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16,
                             "attention_downsample_rate": 2},
    )  # fmt: skip
    return save(SamModel(config), directory)
