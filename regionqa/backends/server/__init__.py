"""Models behind a server that speaks OpenAI's chat protocol: vLLM, llama.cpp, Ollama, LM Studio."""
