"""The source documents' server, literally: python benchmarks/literal_server.py MODEL PORT.

All of it in `async def`, on the event loop, by eager PyTorch; what they leave open is filled in in the usual way.
"""

import io
import sys

import literal
import torch
import uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image

from patholib.deploy import loading

app = FastAPI()
held = {}


@app.on_event("startup")
async def load_model():
    model, facts = loading.classifier(sys.argv[1])
    held.update(model=literal.twin(model), classes=facts["classes"])


@app.post("/predict")
async def predict(file: UploadFile):
    image = Image.open(io.BytesIO(await file.read())).convert("RGB")
    with torch.no_grad():
        probs = torch.softmax(held["model"](literal.PLAIN(image)[None]), dim=1)[0]
    return {name: float(p) for name, p in zip(held["classes"], probs, strict=True)}


@app.get("/health")
async def health():
    return {"status": "healthy", "model_loaded": "model" in held, "device": "cpu"}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error")
